#!/usr/bin/env python3
"""Price a European call option by Monte Carlo: price.py SCENARIO.json writes price.json.

Standard library only, so that it runs on any node as it is.
"""

import json
import math
import random
import sys
from pathlib import Path


def main(path: str) -> None:
    scenario = json.loads(Path(path).read_text())
    spot, strike, rate = scenario["spot"], scenario["strike"], scenario["rate"]
    years, volatility, paths = scenario["years"], scenario["volatility"], scenario["paths"]
    chance = random.Random(scenario["seed"])
    drift = (rate - volatility**2 / 2) * years
    spread = volatility * math.sqrt(years)
    payoffs = [max(0.0, spot * math.exp(drift + spread * chance.gauss(0, 1)) - strike) for _ in range(paths)]
    discount = math.exp(-rate * years)
    mean = sum(payoffs) / paths
    variance = sum((payoff - mean) ** 2 for payoff in payoffs) / (paths - 1)
    price = {
        "price": round(discount * mean, 4),
        "error": round(discount * math.sqrt(variance / paths), 4),
        "paths": paths,
    }
    Path("price.json").write_text(json.dumps(price) + "\n")
    print(f"{price['price']:.2f} +- {price['error']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
