"""Where the world is touched: stages of DVC, workers of Ray, runs and models of MLflow, files and commands."""
