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
fn machines_without_a_terminal() {
    let Command::Run(run) = parse("umbra run -dq --rm --name web").unwrap().command else {
        panic!("not run")
    };
    assert!(run.common.detach && run.common.remove && run.common.quiet && !run.common.in_background);
    let Command::Stop(stop) = parse("umbra stop web db -t 5").unwrap().command else { panic!("not stop") };
    assert_eq!((stop.names.len(), stop.time, stop.force), (2, 5, false));
    for line in [
        "umbra restore -d file",
        "umbra console -r web",
        "umbra logs -fn 20 web",
        "umbra rm -f web db",
        "umbra wait web",
        "umbra start web",
        "umbra ls -a --json",
        "umbra port rm web 8080",
        "umbra port remove web [::1]:53:53/udp",
    ] {
        assert!(parse(line).is_ok(), "{line} was refused");
    }
}

#[test]
fn wrong_values_are_refused_with_a_reason() {
    for line in [
        "umbra run --memory 1",
        "umbra run --memory 0G",
        "umbra run --memory 99999999999999G",
        "umbra run --name ../x",
        "umbra run ./disk.qcow2",
        "umbra run --name .",
        "umbra run --cpu-model i486",
        "umbra run --accel tcg",
        "umbra run --initrd i",
        "umbra restore f --initrd i",
        "umbra save web",
        "umbra run -d --stats",
        "umbra stop",
        "umbra stop -f -t 3 web",
        "umbra rm",
        "umbra console",
        "umbra port add web 80",
        "umbra port remove web http",
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
