"""The one error of `make run`."""


class RunError(Exception):
    """Something a person can put right; the message is one sentence for them, `exit_code` is the program's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
