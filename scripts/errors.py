"""The error of `make run` and `make study`."""


class RunError(Exception):
    """Something that the user can put right.

    Attributes:
        exit_code: what the program exits with. The message is one sentence for the user.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
