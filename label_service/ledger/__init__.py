"""What a run may do: each request is charged, limited and logged in one transaction of the one writer.

May import `log`, `store` and `errors`.
Must not import `web`, `service` or anything of HTTP (FastAPI, Starlette, uvicorn, httpx), nor open a label file.
"""
