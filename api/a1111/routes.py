"""Everything that the dialect answers, gathered for the application and for its section of the documentation."""

from fastapi import APIRouter

from api.a1111 import generation, listings, switches

router = APIRouter(tags=["AUTOMATIC1111 dialect"], strict_content_type=False)
for part in (generation, switches, listings):
    router.include_router(part.router)
