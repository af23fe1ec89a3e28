"""The pages for people: everything they load comes from here, nothing from elsewhere."""

from importlib.resources import files
from uuid import UUID

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_WEB = files("gateway") / "web"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

_HEADERS = {
    # `blob:` shows a picture before it is uploaded; nothing inline, so a photo's name can never become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@router.get("/")
def home() -> Response:
    """Upload, look at and search photos."""
    return _page("home.html")


@router.get("/docs")
def docs() -> Response:
    """What /openapi.json says, readable."""
    return _page("docs.html")


@router.get("/images/{image_id}/trace")
def trace(image_id: UUID) -> Response:
    """Where one photo's time went."""
    return _page("trace.html")


@router.get("/web/{name}")
def asset(name: str) -> Response:
    """A style sheet or a script of the pages."""
    return _page(name)


def _page(name: str) -> Response:
    media_type = _TYPES.get(name[name.rfind(".") :])
    file = _WEB / name
    if media_type is None or "/" in name or not file.is_file():
        raise HTTPException(404)
    return Response(file.read_bytes(), headers=_HEADERS, media_type=media_type)
