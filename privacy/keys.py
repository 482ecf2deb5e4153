"""Manages the keys of a run: the secret from which the noise and the cohorts of every round are derived.

Amplification by sampling holds only while cohorts are secret, and noise protects only while nobody else can compute
it. The secret therefore comes from the operating system's randomness and is kept in one file of mode 0600, which no
report, export or log contains. Every derived value is an HMAC-SHA256 of (purpose, round) under this 32-byte secret.
So the noise of a round does not depend on earlier rounds, and a killed run that is resumed draws the same noise and
cohorts as before.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import pathlib
import secrets
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from privacy import checks, files

if TYPE_CHECKING:
    from privacy.ledger.compliance import Round

_SECRET_BYTES = 32
FIXED_PREFIX = "fixed-"


class RunKeys:
    """Holds the secret of one run and derives values from it. `repr` shows neither.

    Attributes:
      is_fixed: True if the secret was derived from a seed that somebody typed. A report must then say that ε does not
        hold.
    """

    __slots__ = ("_secret", "is_fixed")

    def __init__(self, secret: bytes, *, is_fixed: bool) -> None:
        self._secret = secret
        self.is_fixed = is_fixed

    def __repr__(self) -> str:
        return f"RunKeys(is_fixed={self.is_fixed})"

    @staticmethod
    def create(path: str | pathlib.Path) -> RunKeys:
        """Draws a fresh secret, writes it to `path` with mode 0600 and returns the keys.

        Raises:
          FileExistsError: `path` exists. A key file is never overwritten, because the noise of its run follows from
            its secret.
          OSError: the file could not be written.
        """
        keys, target = RunKeys(secrets.token_bytes(_SECRET_BYTES), is_fixed=False), pathlib.Path(path)
        # Write under another name, then link: a process that is killed leaves a complete key file or none.
        draft = target.with_name(f".{target.name}.{os.getpid()}.draft")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w") as file:
                json.dump({"format": 1, "secret": keys._secret.hex()}, file)
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, target)
        except FileExistsError:
            raise FileExistsError(f"key file {path} exists already: resume its run or choose another folder") from None
        except OSError as error:
            raise files.not_written(path, error) from None
        finally:
            draft.unlink()
        return keys

    @staticmethod
    def fixed(seed: int) -> RunKeys:
        """Returns keys that anybody who knows `seed` can compute. They protect nobody and are for tests only.

        Args:
          seed: an integer of at least 0.
        """
        checks.whole("seed", seed, 0, "give a number such as 1")
        return RunKeys(hashlib.sha256(f"fixed key {seed}".encode()).digest(), is_fixed=True)

    @staticmethod
    def load(path: str | pathlib.Path) -> RunKeys:
        """Returns the keys in a file that `create` wrote.

        Raises:
          FileNotFoundError: there is no such file.
          PermissionError: group or others have permissions on the file.
          ValueError: the file is not a key file, or is damaged.
        """
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            raise FileNotFoundError(f"key file {path} is missing: without it the run cannot be resumed") from None
        if mode & 0o077:
            raise PermissionError(f"key file {path} has mode {mode:04o}, open to others: chmod 600 {path}")
        try:
            content = json.loads(pathlib.Path(path).read_text())
            secret = bytes.fromhex(content["secret"])
            if content["format"] != 1 or len(secret) != _SECRET_BYTES:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"key file {path} is damaged or not a key file: restore it from a backup") from None
        return RunKeys(secret, is_fixed=False)

    def noise_seed(self, round: int) -> npt.NDArray[np.int64]:
        """Returns the seed of the floating-point noise of a round, int64 [2], for stateless generators."""
        return np.frombuffer(self._digest("noise seed", round)[:16], dtype="<i8").astype(np.int64)

    def stream_seed(self, name: str) -> npt.NDArray[np.int64]:
        """Returns the seed of the noise stream `name`, int64 [2] (see `Ledger.noise_stream`)."""
        return np.frombuffer(self._digest(f"noise stream {name}", 0)[:16], dtype="<i8").astype(np.int64)

    def stream_id(self, name: str) -> str:
        """Returns the name that identifies the noise of a stream in the ledger, like `noise_id` for a round."""
        return (FIXED_PREFIX if self.is_fixed else "") + self._digest(f"noise stream id {name}", 0)[:8].hex()

    def noise_key(self, round: int) -> bytes:
        """Returns the key of the exact noise of a round, 32 bytes (`privacy.noise.rounded`)."""
        return self._digest("exact noise", round)

    def sampler_seed(self, round: int) -> int:
        """Returns the 128-bit seed of the cohort of a round, for instance for `np.random.Philox(key=...)`."""
        return int.from_bytes(self._digest("sampler seed", round)[:16], "little")

    def noise_id(self, round: int) -> str:
        """Returns the name that identifies the noise of a round in the ledger and reveals nothing about it.

        The name has 16 hexadecimal digits. With fixed keys it begins with `FIXED_PREFIX`, so that every report on the
        ledger can say that the key was fixed.
        """
        return (FIXED_PREFIX if self.is_fixed else "") + self._digest("noise id", round)[:8].hex()

    def match(self, rounds: Sequence[Round]) -> bool:
        """Returns whether the noise of the last of `rounds` was drawn with these keys; True if there are no rounds."""
        return not rounds or rounds[-1].noise_id == self.noise_id(len(rounds) - 1)

    def _digest(self, purpose: str, round: int) -> bytes:
        checks.whole("round", round, 0, "rounds count from 0")
        return hmac.digest(self._secret, f"{purpose}\0{round}".encode(), "sha256")
