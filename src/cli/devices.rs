//! `devices`: what this build and machine offer.

use super::error::Error;
use super::show;
use crate::device::{Offer, survey};
use crate::run::memory::Bytes;
use crate::table::listing;

/// Lists every device with what it computes in, and why others are missing.
pub(super) fn devices(as_json: bool) -> Result<(), Error> {
    let offers = survey();
    if as_json {
        return show::json(&offers);
    }
    let (there, missing): (Vec<&Offer>, Vec<&Offer>) =
        offers.iter().partition(|offer| offer.missing.is_none());
    let row = |offer: &&Offer| {
        let free = offer.free_bytes.map(|free| Bytes(free as f64).to_string());
        let text = |text: Option<&str>| text.unwrap_or("unknown").to_owned();
        let name = text(offer.name.as_deref());
        vec![offer.device.clone(), name, offer.computes.join(", "), text(free.as_deref())]
    };
    let rows: Vec<_> = there.iter().map(row).collect();
    show::out(&listing(&["--device", "name", "computes in", "free memory"], &rows))?;
    let line = |offer: &&Offer| {
        format!("{}: {}", offer.device, offer.missing.as_deref().unwrap_or_default())
    };
    let lines: Vec<String> = missing.iter().map(line).collect();
    if lines.is_empty() { Ok(()) } else { show::out(&format!("\nmissing\n{}", lines.join("\n"))) }
}
