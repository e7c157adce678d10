"""The pages, drawn from the sources and the kept results. Serves a clone only."""
