"""What `/openapi.json` and `/docs` say: the routes of the one address and the bodies they take."""

from truthgpt_serve.router.openapi.document import openapi_document, openapi_json
from truthgpt_serve.router.openapi.page import docs_html

__all__ = ["docs_html", "openapi_document", "openapi_json"]
