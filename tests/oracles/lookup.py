"""Looks the last tokens of a text up in it, by comparing slices."""


def proposal(text, longest, shortest):
    """Returns the token after the most recent earlier occurrence of the most last tokens; None without one."""
    for count in range(min(longest, len(text) - 1), shortest - 1, -1):
        for end in range(len(text) - 1, count - 1, -1):
            if text[end - count : end] == text[-count:]:
                return text[end]
    return None
