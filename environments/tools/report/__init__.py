"""`atropos report RUN`: one HTML page of a run, which needs no network and runs nothing of what the model wrote."""
