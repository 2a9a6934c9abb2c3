"""The result's README.md. (Placeholder until the card room lands: the owner of hub/ replaces this file.)"""

from safegraft.engine.task import Plan


def render_card(plan: Plan) -> bytes:
    return f"# Merged model\n\nPlan digest: {plan.digest}\n".encode()
