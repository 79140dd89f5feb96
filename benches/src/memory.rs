//! What a process takes of memory.

/// Octets of memory that this process has in use, as the system counts them.
///
/// # Panics
/// Where there is no `/proc`.
pub fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("/proc/self/statm");
    let pages: i64 = text.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number of pages");
    pages * 4096
}
