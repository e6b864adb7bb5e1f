"""An int8 expert kernel in Verilog, simulated cycle by cycle, placed, and made a profile."""
