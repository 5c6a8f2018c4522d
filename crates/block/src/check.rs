//! What a check of an image finds and mends.

/// What a check may mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Repair {
    /// Only look.
    #[default]
    None,
    /// Clusters that nothing uses are freed.
    Leaks,
    /// Leaks, and whatever else can be mended.
    All,
}

/// One thing that a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether data is or may be at stake; a leak only wastes space.
    pub corruption: bool,
    /// Whether it has been mended.
    pub fixed: bool,
    /// Whether mending it loses data (an entry that points nowhere is dropped).
    pub loses_data: bool,
    /// What it is, in one line.
    pub what: String,
}

/// What a check found. The numbers are those of `qemu-img check`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckReport {
    /// Contradictions that remain.
    pub corruptions: u64,
    /// Clusters that nothing uses and that are not free, which remain.
    pub leaks: u64,
    /// Contradictions that were mended.
    pub corruptions_fixed: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// Errors that kept the check from looking at everything.
    pub check_errors: u64,
    /// The end of the last used cluster in the file.
    pub image_end_offset: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Clusters of the disk that have a place.
    pub allocated_clusters: u64,
    /// Allocated clusters whose place does not follow the one before.
    pub fragmented_clusters: u64,
    /// Clusters that are compressed.
    pub compressed_clusters: u64,
    /// The first [`CheckReport::MAX_FINDINGS`] findings; the numbers above count all.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Findings that are kept as text: a broken table has as many as entries.
    pub const MAX_FINDINGS: usize = 1000;

    /// Whether the image is in order now.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    /// Counts and keeps a contradiction that stays as it is.
    pub fn corruption(&mut self, what: String) {
        self.corruptions += 1;
        self.note(Finding { corruption: true, fixed: false, loses_data: false, what });
    }

    /// Keeps a finding as text where there is room. The caller counts.
    pub fn note(&mut self, finding: Finding) {
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(finding);
        }
    }
}
