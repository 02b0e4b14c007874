"""Jobs: they run the stages in order and write the files of a run directory."""
