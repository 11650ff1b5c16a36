"""Studies of many runs (`make study`), and the records of them in `records/` (`make verify-records`).

It may import the rest of `scripts` and the trainer; nothing else imports it but `scripts.options`.
It believes the signed entries of the logs, and compares everything else with them.
"""
