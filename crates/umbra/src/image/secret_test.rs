use super::read_all;

fn secret(definition: &str) -> Vec<u8> {
    let secrets = read_all([definition].into_iter()).unwrap_or_else(|error| panic!("{definition}: {error}"));
    secrets.get("s").expect("its id").to_vec()
}

fn refusal(definitions: &[&str]) -> String {
    read_all(definitions.iter().copied()).expect_err("refused").to_string()
}

#[test]
fn a_secret_is_given_in_several_forms() {
    assert_eq!(secret("secret,id=s,data=a,,b"), b"a,b");
    assert_eq!(secret("qom-type=secret,id=s,data=abc"), b"abc");
    assert_eq!(secret(r#"{"qom-type":"secret","id":"s","data":"abc"}"#), b"abc");
    assert_eq!(secret("secret,id=s,data=YWJj,format=base64"), b"abc");
    assert_eq!(secret("secret,id=s,data=YWI=,format=base64"), b"ab");
    // What makes no group of four is passed over.
    assert_eq!(secret("secret,id=s,data=YWJjZA,format=base64"), b"abc");
    assert_eq!(secret("secret,id=s,data=YWI=YWJj,format=base64"), b"ababc");
    assert_eq!(secret("secret,id=s,data=YW\nJj,format=base64"), b"abc");
    let file = std::env::temp_dir().join(format!("umbra-secret-{}", std::process::id()));
    std::fs::write(&file, b"from a file\n").unwrap();
    assert_eq!(secret(&format!("secret,id=s,file={}", file.display())), b"from a file\n");
    std::fs::remove_file(&file).unwrap();
}

#[test]
fn a_secret_is_encrypted_with_another() {
    // By `openssl enc -aes-256-cbc`, with the key 00 to 1f and the vector 00 to 0f.
    let key = "secret,id=k,format=base64,data=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let packed =
        "secret,id=s,format=base64,keyid=k,iv=AAECAwQFBgcICQoLDA0ODw==,data=WmS3TwV2u4ktKAxIx1qGgA==";
    for order in [[key, packed], [packed, key]] {
        let secrets = read_all(order.into_iter()).unwrap();
        assert_eq!(secrets.get("s").unwrap(), b"password");
    }
    assert!(refusal(&[packed]).contains("'k'"));
    assert!(refusal(&[key, &packed.replace(",iv=AAECAwQFBgcICQoLDA0ODw==", "")]).contains("IV is required"));
    assert!(refusal(&[key, &packed.replace("WmS3", "XmS3")]).contains("padding"));
    assert!(refusal(&["secret,id=s,data=x,iv=AAAA"]).contains("keyid"));
    assert!(refusal(&["secret,id=s,data=x,keyid=s,iv=AAAA"]).contains("'s'"));
}

#[test]
fn what_is_wrong_is_said() {
    assert_eq!(refusal(&["tls,id=s"]), "Parameter 'qom-type' does not accept value 'tls'");
    assert_eq!(refusal(&["secret,data=x"]), "Parameter 'id' is missing");
    assert_eq!(refusal(&["secret,id=s"]), "Either 'file' or 'data' must be provided");
    assert_eq!(refusal(&["secret,id=s,data=a,file=b"]), "'file' and 'data' are mutually exclusive");
    assert_eq!(refusal(&["secret,id=s,data=a,more=b"]), "Parameter 'more' is unexpected");
    assert_eq!(refusal(&["secret,id=s,data=a,format=hex"]), "Parameter 'format' does not accept value 'hex'");
    assert!(refusal(&["secret,id=s,data=YW I=,format=base64"]).contains("Base64"));
    assert!(refusal(&["secret,id=s,data=YW-_,format=base64"]).contains("Base64"));
    assert!(refusal(&["secret,id=s,file=/nonexistent"]).contains("No such file"));
    assert!(refusal(&["secret,id=s,fd=9999"]).contains("descriptor"));
    assert!(refusal(&["secret,id=s,data=a", "secret,id=s,data=b"]).contains("duplicate"));
}
