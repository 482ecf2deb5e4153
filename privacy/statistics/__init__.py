"""Private statistics of one value per person: means, quantiles, and measurements of OpenDP."""
