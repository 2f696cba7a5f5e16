"""How a policy calls tools: what it is told of them, and how its turns are written and read."""
