"""From a recipe to processes: a plan that only names what is run, and a runner that runs it."""
