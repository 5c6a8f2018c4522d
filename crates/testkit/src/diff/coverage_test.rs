//! The table of what has been compared, in `docs/fuzz-coverage.csv`.

const TABLE: &str = include_str!("../../../../docs/fuzz-coverage.csv");
/// Compared cases that did not fault, of each form with each kind of operand in each mode.
const LEAST: u32 = 1000;
/// INT3 does nothing but raise an exception, so there is nothing to vary: a case for each state that is tried.
const RAISES: &str = "Int3";
/// Near branches with 16-bit operands in 32-bit mode lead below 64 KiB (SDM volume 2, "JMP"), where a process of the host has no code.
const LOW: [&str; 7] =
    ["Call_rel16", "Call_rm16", "Jmp_rel16", "Jmp_rel8_16", "Jmp_rm16", "Retnw", "Retnw_imm16"];

#[test]
fn every_form_has_been_compared_often_enough() {
    let mut lines = TABLE.lines();
    let head: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!(head[..5], ["form", "operand", "64", "32", "16"]);
    let mut seen = [0; 3];
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        for (mode, count) in seen.iter_mut().enumerate() {
            // A mode that does not have the form, or not with this operand, has no number.
            let Ok(cases) = cells[2 + mode].parse::<u32>() else { continue };
            *count += 1;
            let excused = cells[0] == RAISES || head[2 + mode] == "32" && LOW.contains(&cells[0]);
            assert!(cases >= LEAST || excused, "{line}: mode {}", head[2 + mode]);
        }
    }
    assert!(seen.iter().all(|count| *count > 7000), "{seen:?} rows");
}
