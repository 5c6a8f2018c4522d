//! The lists in `data/`: a line each, comments behind `#`. Lines that begin with `amd:` hold where the host's processor is AMD's.

use umbra_engine_soft::host_is_amd;

/// The lines of `text` that hold on this host.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.filter_map(|l| l.strip_prefix("amd:").map_or(Some(l), |l| host_is_amd().then_some(l)))
}
