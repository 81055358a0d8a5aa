"""The agent's own judgement of its node: the rules, and the engine that asks them."""
