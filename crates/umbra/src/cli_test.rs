use clap::{CommandFactory, Parser};

use super::{Accel, Cli, Command};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn a_full_command_line() {
    let cli = parse(
        "umbra run --kernel k --initrd i --append quiet --cpus 2 --memory 512m --accel soft --name web",
    )
    .unwrap();
    let Command::Run(run) = cli.command else { panic!("not run") };
    assert_eq!((run.cpus, run.memory, run.common.accel), (2, 512 << 20, Accel::Soft));
}

#[test]
fn wrong_values_are_refused_with_a_reason() {
    for line in [
        "umbra run --memory 1",
        "umbra run --memory 0G",
        "umbra run --memory 99999999999999G",
        "umbra run --name ../x",
        "umbra run --name .",
        "umbra run --cpu-model i486",
        "umbra run --accel tcg",
        "umbra run --initrd i",
        "umbra restore f --initrd i",
        "umbra save web",
    ] {
        assert!(parse(line).is_err(), "{line} was taken");
    }
}

#[test]
fn the_help_documents_the_exit_codes() {
    let help = Cli::command().find_subcommand_mut("run").unwrap().render_long_help().to_string();
    for code in ["panicked", "triple fault", "internal error", "Ctrl-A x"] {
        assert!(help.to_lowercase().contains(&code.to_lowercase()), "{code}");
    }
}
