use profiler_ebpf::Cfa;

use super::*;

#[test]
fn prints() {
    for path in std::env::var("PYEBPF_UNWIND")
        .unwrap_or_default()
        .split(' ')
    {
        let Ok(file) = File::open(path) else { continue };
        let mut rules = Rules::default();
        let begun = std::time::Instant::now();
        let table = Table::read(file, &mut rules).unwrap();
        let took = begun.elapsed();
        let by_number: std::collections::HashMap<_, _> = rules.since(0).into_iter().collect();
        let unsupported = table
            .rows
            .iter()
            .filter(|row| by_number[&row.rule].cfa == Cfa::Unsupported as u8)
            .count();
        println!(
            "{path}: {} rows, {} rules, {unsupported} unsupported, {took:?}",
            table.rows.len(),
            rules.len()
        );
        if std::env::var("PYEBPF_UNWIND_ROWS").is_ok() {
            for row in &table.rows {
                let rule = by_number[&row.rule];
                println!(
                    "{:x} {} {} {} {} {}",
                    row.start, rule.cfa, rule.register, rule.offset, rule.rbp, rule.rbp_offset
                );
            }
        }
    }
}
