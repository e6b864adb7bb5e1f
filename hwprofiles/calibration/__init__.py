"""How the numbers of this folder are made: measure kernel rows, quarantine, fit, report."""
