"""Forecasts of one peer for every task of a suite: peers.py MODEL SUITE.json SERIES.csv.gz OUT.csv.gz

Each task is fitted anew on its own window. Prints the median CPU seconds a task.
"""

import json
import sys
import time
import warnings

import numpy as np
import pandas as pd

warnings.filterwarnings("ignore")
LEVELS = (0.5, 0.95)


def time_of_day(past, horizon, season):
    """Quantiles of what was seen within a quarter of an hour of the same time on each day."""
    reach = max(1, season // 96)
    around = np.arange(-reach, reach + 1)
    mean, quantiles = np.empty(horizon), {level: np.empty(horizon) for level in LEVELS}
    for step in range(horizon):
        days = np.arange(len(past) + step - season, -1, -season)
        places = (days[:, None] + around).ravel()
        seen = past[places[(places >= 0) & (places < len(past))]]
        mean[step] = seen.mean()
        for level in LEVELS:
            quantiles[level][step] = np.quantile(seen, level)
    return mean, quantiles[0.95]


def ewma(past, horizon, season, gain=0.3):
    """An exponentially weighted level, and the quantiles of its own errors at each distance over four days."""
    level, levels = past[0], np.empty(len(past))
    for i, value in enumerate(past):
        level += gain * (value - level)
        levels[i] = level
    last = slice(-4 * season, None)
    reach = [np.quantile((past[step:] - levels[:-step])[last], 0.95) for step in range(1, horizon + 1)]
    return np.full(horizon, level), level + np.array(reach)


def library(name, season, window):
    """A model of statsforecast, as a function like the above."""
    from statsforecast.models import MSTL, AutoARIMA, AutoETS, SeasonalNaive, Theta

    seasons = [length for length in season if 2 * length < window]
    make = {
        "SeasonalNaive": lambda: SeasonalNaive(season_length=seasons[0]),
        "Theta": lambda: Theta(season_length=seasons[0]),
        "MSTL_ETS": lambda: MSTL(
            season_length=seasons if len(seasons) > 1 else seasons[0], trend_forecaster=AutoETS(model="ZZN")
        ),
        "AutoARIMA": lambda: AutoARIMA(season_length=1),
    }[name]

    def forecast(past, horizon, _season):
        result = make().forecast(y=past, h=horizon, level=[90])
        return result["mean"], result["hi-90"]

    return forecast


def main():
    name, suite_path, series_path, out_path = sys.argv[1:]
    with open(suite_path) as file:
        suite = json.load(file)
    series = pd.read_csv(series_path)
    window, horizon, season = suite["window"], suite["horizon"], suite["season"]
    own = {"TodQuantile": time_of_day, "EwmaConformal": ewma}
    model = own.get(name) or library(name, season, window)
    parts, times = [], []
    for task, (column, origin) in enumerate(suite["tasks"]):
        past = series[column].values[origin - window : origin].astype(np.float64)
        if task == 0:
            model(past, horizon, season[0])  # imports and compilation are not the model's time
        began = time.process_time()
        point, high = model(past, horizon, season[0])
        times.append(time.process_time() - began)
        steps = np.arange(1, horizon + 1)
        for quantile, values in (("mean", point), ("0.95", high)):
            values = np.nan_to_num(np.asarray(values, float), nan=past[-1], posinf=1e12, neginf=0)
            parts.append(
                pd.DataFrame(dict(series_id=column, origin=origin, step=steps, quantile=quantile, value=values))
            )
    pd.concat(parts).to_csv(out_path, index=False, float_format="%.6g")
    print(np.median(times))


if __name__ == "__main__":
    main()
