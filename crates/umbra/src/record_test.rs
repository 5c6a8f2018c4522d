use super::Record;

fn record() -> Record {
    Record {
        name: "web".into(),
        engine: "soft".into(),
        spec: serde_json::json!({ "cpus": 2 }),
        arguments: vec!["run".into(), "-d".into()],
        folder: "/srv".into(),
        detached: true,
        remove: false,
        started_ms: 1,
        ended_ms: None,
        exit_code: None,
        ending: None,
        message: None,
    }
}

#[test]
fn what_was_written_is_read() {
    let folder = std::env::temp_dir().join(format!("umbra-record-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    assert_eq!(Record::read(&folder), None);
    record().write(&folder).unwrap();
    let ended = Record { ended_ms: Some(7), exit_code: Some(3), ending: Some("panic".into()), ..record() };
    ended.write(&folder).unwrap();
    assert_eq!(Record::read(&folder), Some(ended));
    std::fs::write(folder.join(super::FILE), b"{\"name\":").unwrap();
    assert_eq!(Record::read(&folder), None);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_record_of_a_later_version_is_read() {
    let mut value = serde_json::to_value(record()).unwrap();
    value["more"] = 1.into();
    value.as_object_mut().unwrap().remove("message");
    assert_eq!(serde_json::from_value::<Record>(value).unwrap(), record());
}
