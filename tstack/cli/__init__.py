"""The programs: argument parsing and nothing else; every module has main(argv=None) -> int."""
