"""What a run may do: each request is charged, limited and logged in one transaction of the one writer.

May import: errors, log, store.
Must not import: `web`, `service` or anything of HTTP (FastAPI, Starlette, uvicorn, httpx); it opens no label file.
"""
