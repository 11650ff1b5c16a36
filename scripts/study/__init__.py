"""Studies of many runs (`make study`), and the records of them in `records/` (`make verify-records`).

It may import the rest of `scripts` and the trainer; nothing else imports it but `scripts.options`.
Only the signed log entries are trusted; everything else in a record is checked against them.
"""
