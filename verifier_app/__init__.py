"""The verifier: the judge (`verifier_app.judge`) and the ways to reach it. Importing this package imports nothing."""
