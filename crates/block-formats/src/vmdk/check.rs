//! The check of a VMDK image: every grain lies in its file.

use umbra_block::{CheckReport, Error, Repair, Result, Task};

use super::{Image, Part};
use crate::common::Unit;

impl Image {
    pub(super) fn check_all(&self, repair: Repair, task: &Task<'_>) -> Result<CheckReport> {
        if repair != Repair::None {
            return Err(Error::Unsupported("mending a VMDK image; convert it to another format".into()));
        }
        let mut report = CheckReport::default();
        for extent in &self.extents {
            let Part::Sparse(_, sparse) = &extent.part else { continue };
            let len = sparse.storage.len()?;
            let grains = extent.len.div_ceil(sparse.grain);
            let mut grain = 0;
            while grain < grains {
                task.at(extent.start + grain * sparse.grain, self.size)?;
                // Tables that are not there are passed over as a whole.
                if sparse.grains.get(grain)?.is_none() {
                    grain = sparse.grains.next_table(grain);
                    continue;
                }
                if let Unit::At(at) = sparse.look(grain)?
                    && at >= len
                {
                    let offset = extent.start + grain * sparse.grain;
                    report.corruption(format!(
                        "the grain at {offset} lies behind the end of '{}'",
                        extent.file
                    ));
                }
                grain += 1;
            }
        }
        task.at(self.size, self.size)?;
        Ok(report)
    }
}
