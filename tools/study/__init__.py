"""The study: does distillation pay? One plan as data, a driver, records of what ran, and a table made from them."""
