"""What `make` starts: one whole run and its check, and studies of many runs (`study/`).

It may import the trainer, and starts both programs as processes of their own. Neither program imports it.
It must not import `label_service`: what it checks, it reads over HTTP or from files.
"""
