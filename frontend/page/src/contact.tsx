import { createContext, useContext } from "react";
import type { Contact } from "../../src";

/** The person whom users can ask for help. Null if the deployment names nobody. */
export const ContactContext = createContext<Contact | null>(null);

/** Name, mail and WhatsApp of the contact. Both links bring the text along. */
export function AskForHelp({ text }: { text: string }) {
  const contact = useContext(ContactContext);
  if (!contact || !(contact.name || contact.mail || contact.whatsapp)) return null;
  const message = encodeURIComponent(text);
  return (
    <p className="contact">
      <strong>A quién avisar:</strong> {contact.name ?? "ingeniero de datos"}
      {contact.mail && (
        <>
          {" · "}
          <a href={`mailto:${contact.mail}?subject=Pulso&body=${message}`}>{contact.mail}</a>
        </>
      )}
      {contact.whatsapp && (
        <>
          {" · "}
          <a href={`https://wa.me/${contact.whatsapp}?text=${message}`} rel="noreferrer" target="_blank">
            WhatsApp
          </a>
        </>
      )}
    </p>
  );
}
