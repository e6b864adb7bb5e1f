"""From a question to a plan: scenario, candidates, work, seconds, choice."""
