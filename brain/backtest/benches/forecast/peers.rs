//! The peers: Python programs in an environment of their own below `target/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// What the environment has beside Python.
const PACKAGES: [&str; 4] = ["numpy", "pandas", "scipy", "statsforecast"];

/// Makes the environment if it is not there; returns its interpreter.
pub(crate) fn environment() -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let directory = target.join("forecast-peers");
    let (python, made) = (directory.join("bin/python"), directory.join("made"));
    if made.exists() {
        return Ok(python);
    }
    eprintln!("installing {} into {}", PACKAGES.join(", "), directory.display());
    let venv = Command::new("python3").args(["-m", "venv"]).arg(&directory).status().context("running python3")?;
    ensure!(venv.success(), "python3 -m venv failed ({venv}): install Debian's python3-venv");
    let pip = Command::new(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES).status()?;
    ensure!(pip.success(), "pip install failed ({pip}): is a package index reachable?");
    std::fs::write(made, "")?;
    Ok(python)
}

/// Runs one peer over a suite on one thread; returns its forecasts and its CPU seconds a task (median).
pub(crate) fn run(python: &Path, peer: &str, suite: &Path, series: &Path, scratch: &Path) -> Result<(PathBuf, f64)> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/forecast/peers.py");
    let out = scratch.join(format!("{peer}.csv.gz"));
    let mut command = Command::new(python);
    for threads in ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(threads, "1");
    }
    let output = command.arg(script).arg(peer).arg(suite).arg(series).arg(&out).output().context("running a peer")?;
    if !output.status.success() {
        bail!("{peer} failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let cpu_s = printed.lines().last().and_then(|line| line.trim().parse().ok());
    Ok((out, cpu_s.with_context(|| format!("{peer} told no CPU time but {printed:?}"))?))
}
