"""Servers of scored models: do they answer, do they serve the model, and do its contexts fit?"""

from __future__ import annotations

import asyncio

from actors.scoring.server_client import ServerAway, ServerClient, ServerRefused
from configs.load import RecipeError
from configs.roles.scorer import Scorer
from configs.schema import Recipe

PATIENCE = 10.0  # seconds for a server that does not answer yet


def served_elsewhere(recipe: Recipe, model: str) -> bool:
    """Whether no member of the run holds a model's weights: a server has them, and nothing else reads them."""
    others = model not in recipe.scored_models or model == recipe.sampled_teacher
    return not others and recipe.scorer_of(model).engine == "server"


def check_servers(recipe: Recipe) -> None:
    """Ask each server what it serves. Raises RecipeError."""
    for model in recipe.scored_models:
        if (scorer := recipe.scorer_of(model)).engine == "server":
            try:
                asyncio.run(_ask(scorer))
            except (ServerAway, ServerRefused) as error:
                raise RecipeError(f"scorer.{model}.server: {error}") from None


async def _ask(scorer: Scorer) -> None:
    assert scorer.server is not None
    async with ServerClient(scorer.server, PATIENCE) as client:
        await client.find(scorer.max_context_tokens)
