"""The commands that rehearse: demo, replay, scenario."""
