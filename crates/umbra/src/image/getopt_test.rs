use super::{Opt, Parsed, UsageError, parse};

const TABLE: [Opt; 6] = [
    Opt::value('f', "format", "FMT", ""),
    Opt::flag('q', "quiet", ""),
    Opt::value('b', "backing", "NAME", ""),
    Opt::value('F', "backing-format", "FMT", ""),
    Opt::flag(' ', "image-opts", ""),
    Opt::flag(' ', "quietest", "").exact(),
];

fn read(line: &str) -> Parsed {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    parse(&TABLE, &words)
}

fn error(line: &str) -> String {
    read(line).error.expect(line).to_string()
}

#[test]
fn options_and_operands_mix() {
    let parsed = read("a -f raw b -qfqcow2 --backing=x c -- -d");
    assert_eq!(parsed.operands, ["a", "b", "c", "-d"]);
    assert_eq!(parsed.last("format"), Some("qcow2"));
    assert_eq!(parsed.all("format").collect::<Vec<_>>(), ["raw", "qcow2"]);
    assert!(parsed.has("quiet") && !parsed.has("image-opts"));
    assert_eq!(parsed.last("backing"), Some("x"));
    assert_eq!(parsed.error, None);
}

#[test]
fn a_dash_alone_is_an_operand_and_a_value_may_begin_with_dashes() {
    let parsed = read("- -f --quiet");
    assert_eq!((parsed.operands[0].as_str(), parsed.last("format")), ("-", Some("--quiet")));
    assert!(!parsed.has("quiet"));
}

#[test]
fn names_are_abbreviated() {
    assert_eq!(read("--fo raw").last("format"), Some("raw"));
    assert!(read("--i").has("image-opts"));
    // A whole name wins over a longer one that it begins.
    assert_eq!(read("--backing a").last("backing"), Some("a"));
    assert!(read("--qu").has("quiet"));
}

#[test]
fn mistakes_are_told_as_getopt_does() {
    assert_eq!(error("--nope"), "unrecognized option '--nope'");
    assert_eq!(error("--nope=3"), "unrecognized option '--nope'");
    assert_eq!(error("-qZ"), "invalid option -- 'Z'");
    assert_eq!(error("-f"), "option requires an argument -- 'f'");
    assert_eq!(error("--form"), "option '--format' requires an argument");
    assert_eq!(error("--quiet=1"), "option '--quiet' doesn't allow an argument");
    assert_eq!(error("--b"), "option '--b' is ambiguous; possibilities: '--backing' '--backing-format'");
    assert_eq!(read("-q --nope -f raw").options.len(), 1, "reading stops at the mistake");
    assert_eq!(read("--nope").error, Some(UsageError::Unrecognized("--nope".into())));
}
