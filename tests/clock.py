"""A clock for tests: time passes when it is told to."""


class Clock:
    """Nanoseconds since some moment."""

    def __init__(self) -> None:
        self.now = 7_000_000_000

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        """Lets so many seconds pass."""
        self.now += round(seconds * 1e9)
