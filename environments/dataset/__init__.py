"""The training and test problems, by `atropos data build`: one reader per source, everything dropped is counted."""
