"""The parts behind `taskvec_mini.explore`, which is the module to import from."""
