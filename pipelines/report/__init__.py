"""What people see of an evaluation: tables, plots, the HTML report, Weights & Biases."""
