"""The evaluation, from prompts to reports. Imports point one way: engine, data <- stages <- report <- paper."""
