"""The page: runs and curves in a browser, from the files of the runs."""
