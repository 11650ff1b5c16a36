"""`python -m label_service`."""

from label_service.cli import app

app(prog_name="python -m label_service")
