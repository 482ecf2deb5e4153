"""The operator's two secrets of a run: what seeds the noise and what seeds the cohort sampler.

Amplification by sampling holds only while cohorts are secret, and noise protects only while nobody can
regenerate it. So both keys come from the operating system's randomness and live in one file of mode 0600
that no report, export or log contains. All values are HMAC-SHA256 of (purpose, round) under one 32-byte
secret: round r's noise never depends on history, and a killed run redraws exactly the same.
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
    """Secrets of one run. `repr` shows none of them.

    Attributes:
      is_fixed: True when the secret came from a number somebody typed; a report must then say that ε does
        not hold.
    """

    __slots__ = ("_secret", "is_fixed")

    def __init__(self, secret: bytes, *, is_fixed: bool) -> None:
        self._secret = secret
        self.is_fixed = is_fixed

    def __repr__(self) -> str:
        return f"RunKeys(is_fixed={self.is_fixed})"

    @staticmethod
    def create(path: str | pathlib.Path) -> RunKeys:
        """Draws a fresh secret and writes it to `path`, which must not exist, with mode 0600.

        Raises:
          FileExistsError: there is a file already (its noise must never be forgotten or drawn anew).
        """
        keys, target = RunKeys(secrets.token_bytes(_SECRET_BYTES), is_fixed=False), pathlib.Path(path)
        # Written whole under another name and then linked: a kill leaves a whole key file or none.
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
        """Keys that anybody who knows `seed` can redraw: for tests only, they protect nobody."""
        checks.whole("fixed key seed", seed, 0, "give a whole number")
        return RunKeys(hashlib.sha256(f"fixed key {seed}".encode()).digest(), is_fixed=True)

    @staticmethod
    def load(path: str | pathlib.Path) -> RunKeys:
        """Reads what `create` wrote.

        Raises:
          FileNotFoundError: no such file.
          PermissionError: group or others may read or write the file.
          ValueError: not a key file.
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
        """int64[2]: the stateless seed of round `round`'s noise."""
        return np.frombuffer(self._digest("noise seed", round)[:16], dtype="<i8").astype(np.int64)

    def stream_seed(self, name: str) -> npt.NDArray[np.int64]:
        """int64[2]: the seed of the noise stream `name`, for releases beside the rounds (`Ledger.noise_stream`)."""
        return np.frombuffer(self._digest(f"noise stream {name}", 0)[:16], dtype="<i8").astype(np.int64)

    def stream_id(self, name: str) -> str:
        """Names the noise of a stream in the ledger, as `noise_id` does a round's."""
        return (FIXED_PREFIX if self.is_fixed else "") + self._digest(f"noise stream id {name}", 0)[:8].hex()

    def noise_key(self, round: int) -> bytes:
        """32 bytes: the key of round `round`'s exact noise (`privacy.noise.rounded`)."""
        return self._digest("exact noise", round)

    def sampler_seed(self, round: int) -> int:
        """128-bit seed of round `round`'s cohort, for instance for
        `np.random.Generator(np.random.Philox(key))`.
        """
        return int.from_bytes(self._digest("sampler seed", round)[:16], "little")

    def noise_id(self, round: int) -> str:
        """Names round `round`'s noise in the ledger and tells nothing about it: 16 hex digits, after `FIXED_PREFIX` if
        the key is fixed, so that a report on the ledger says so whoever asks for it.
        """
        return (FIXED_PREFIX if self.is_fixed else "") + self._digest("noise id", round)[:8].hex()

    def made(self, rounds: Sequence[Round]) -> bool:
        """Whether the noise of the last of these rounds, if there is one, is of these keys."""
        return not rounds or rounds[-1].noise_id == self.noise_id(len(rounds) - 1)

    def _digest(self, purpose: str, round: int) -> bytes:
        checks.whole("round", round, 0, "rounds count from 0")
        return hmac.digest(self._secret, f"{purpose}\0{round}".encode(), "sha256")
