"""HTTP: the server, routes, request and answer models, error answers, pages.

May import every part of `label_service`.
Must not decide what a run may do, write to the database, or import `trainer`.
"""
