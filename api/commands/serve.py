"""`moesaic serve`: the REST service on this machine."""

from __future__ import annotations

import click


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port to listen on.")
def command(host: str, port: int) -> None:
    """Answer REST questions; the API's pages are at /docs.

    \b
    Example:
        moesaic serve --port 8000
    """
    import uvicorn

    from api.app import create_app

    uvicorn.run(create_app(), host=host, port=port)
